"""Steps on a mirror: verified, complete or passed over, brought back; and stores that fail, hang or are not there."""

import json
import shutil
import threading
from types import SimpleNamespace

import fsspec
import pytest
from ranks import wait_until
from toys import ALONE, take_step, toy_strategy

from pretrain.checkpoint.load import newest_step
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError, ConfigError, ResourceError
from pretrain.train.mirror import restore, uploads
from pretrain.train.mirror.base import check_mirror
from pretrain.train.mirror.restore import fetch_lost, is_mirrored
from pretrain.train.mirror.store import Store
from pretrain.train.mirror.uploads import Mirror
from pretrain.train.run_dir.base import RunConfig, RunDirectory


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(uploads, "WAITS_S", [0.0, 0.0])
    monkeypatch.setattr(restore, "WAITS_S", [0.0, 0.0])
    monkeypatch.setattr(restore, "POLL_S", 0.001)


class Run:
    """A run directory with toy steps, and its mirror."""

    def __init__(self, folder, url, **settings):
        self.cfg = CheckpointConfig(mirror=url, **settings)
        self.where = RunConfig(name="toy", root=str(folder / "runs"))
        self.path = self.where.directory
        self.directory = RunDirectory.claim(self.where)
        self.directory.begin()
        (self.path / "config.yaml").write_text("seed: 3\n")
        (self.path / "metrics.jsonl").write_text('{"step": 1}\n')
        self.module, self.strategy = toy_strategy()
        self.checkpoints = Checkpoints(self.path / "checkpoints", self.cfg, ALONE)
        self.store = Store(url, "toy")

    def mirror(self, store=None, stopped=False):
        return Mirror(self.cfg, self.where, SimpleNamespace(received=stopped), store or self.store)

    def save(self, step, mirror=None):
        take_step(self.module, self.strategy, step)
        self.checkpoints.save(step, self.strategy, {"tokens": step}, required=True)
        path = self.checkpoints.directory / f"step-{step:08d}"
        if mirror:
            mirror.add(path)
        return path

    def lose(self):
        """Delete all that the disk of the run had, and start again; return the run directory."""
        self.directory.close()
        shutil.rmtree(self.path)
        self.directory = RunDirectory.claim(self.where)
        return self.directory

    def fetch(self, **settings):
        where = RunConfig(**{"name": "toy", "root": self.where.root, **settings})
        fetch_lost(self.cfg, where, self.directory, ALONE)


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return f"file://{tmp_path}/mirror" if request.param == "file" else "memory://bucket/mirror"


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(found):
    return [int(name.removeprefix("step-")) for name in found]


def test_what_is_lost_comes_back_byte_for_byte(tmp_path, url):
    run = Run(tmp_path, url)
    with run.mirror() as mirror:
        for step in (2, 5):
            run.save(step, mirror)
            wait_until(lambda step=step: mirror.newest == f"step-{step:08d}")
    expected = tree(run.path)
    assert not [name for name in expected if ".tmp-" in name]
    assert is_mirrored(run.cfg, run.where) is False, "the disk has steps"
    directory = run.lose()
    assert is_mirrored(run.cfg, run.where)
    run.fetch()
    directory.begin()
    found = tree(run.path)
    for name in ("config.yaml", "metrics.jsonl", *(each for each in expected if "step-00000005" in each)):
        assert found[name] == expected[name], name
    assert newest_step(run.path / "checkpoints", ALONE).name == "step-00000005"
    assert "step-00000005 was fetched" in json.loads(found["run.json"])["notes"][0]


@pytest.mark.parametrize(("milestones", "there"), [(0, [1, 3, 4]), (2, [1, 2, 3, 4])])
def test_retention_is_that_of_the_disk_and_what_is_torn_goes(tmp_path, url, milestones, there):
    run = Run(tmp_path, url, keep=2, every=1, keep_every=milestones)
    with run.mirror() as mirror:
        for step in (1, 2, 3, 4):
            path = run.save(step)
            mirror.add(path, ["step-00000001"])  # the best one
            wait_until(lambda step=step: mirror.newest == f"step-{step:08d}" and not mirror._pending())
            if step == 3:
                shutil.rmtree(run.path / "checkpoints" / "step-00000002", ignore_errors=True)
                run.store.begin("step-00000000")
    assert names(run.store.steps().complete) == there and not run.store.steps().torn


class Killed(BaseException):
    """Ends the thread of a mirror as a kill ends its process."""


class Dying(Store):
    """A store that is there for so many writes."""

    def __init__(self, url, writes):
        super().__init__(url, "toy")
        self.writes = writes

    def write(self, step, name, source, size):
        if not self.writes:
            raise Killed
        self.writes -= 1
        return super().write(step, name, source, size)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("writes", [0, 1, 3, 5])
def test_a_kill_between_two_files_leaves_the_step_before(tmp_path, url, writes, caplog):
    run = Run(tmp_path, url)
    with run.mirror() as mirror:
        run.save(3, mirror)
    step = run.save(4)
    run.cfg.mirror_wait_minutes = 0
    with run.mirror(Dying(url, writes)) as mirror:
        mirror.add(step)
        mirror._thread.join(30)
    assert names(run.store.steps().complete) == [3]
    run.lose()
    run.fetch()
    assert newest_step(run.path / "checkpoints", ALONE).name == "step-00000003"
    passed = "step-00000004 is passed over, its upload did not come to its end" in caplog.text
    assert passed == (writes > 0)


def damage(run, step, name):
    """Change a byte of a file on a mirror."""
    files, path = run.store._files, run.store._path(step, name)
    body = bytearray(files.cat_file(path))
    body[len(body) // 2] ^= 1
    files.pipe_file(path, bytes(body))


@pytest.mark.parametrize("file", ["mirror.json", "config.yaml", "checkpoints/step-00000005/state.json"])
def test_a_damaged_step_is_passed_over_and_none_that_verifies_is_an_error(tmp_path, url, file, caplog):
    run = Run(tmp_path, url)
    with run.mirror() as mirror:
        for step in (2, 5):
            run.save(step, mirror)
            wait_until(lambda step=step: mirror.newest == f"step-{step:08d}")
    damage(run, "step-00000005", file)
    run.lose()
    run.fetch()
    assert newest_step(run.path / "checkpoints", ALONE).name == "step-00000002"
    assert "step-00000005 is passed over: " in caplog.text
    damage(run, "step-00000002", "run.json")
    run.lose()
    with pytest.raises(CheckpointError, match=r"none of 2 steps verifies .*run.json: not the bytes"):
        run.fetch()


def test_a_fetch_goes_on_where_it_ended(tmp_path, url, monkeypatch):
    run = Run(tmp_path, url)
    with run.mirror() as mirror:
        path = run.save(7, mirror)
    [large] = path.glob("*.safetensors")
    expected = large.read_bytes()
    run.lose()
    name = f"checkpoints/step-00000007/{large.name}"
    part = run.path / "checkpoints" / ".tmp-mirror-step-00000007" / name
    part.parent.mkdir(parents=True)
    part.write_bytes(expected[:100])
    asked = []
    monkeypatch.setattr("pretrain.train.mirror.store._blocks", counted(asked))
    run.fetch()
    assert (run.path / name).read_bytes() == expected
    assert len(expected) - 100 in asked and not list((run.path / "checkpoints").glob(".tmp*"))


def counted(asked):
    from pretrain.train.mirror.store import _blocks

    def blocks(file, size):
        asked.append(size)
        return _blocks(file, size)

    return blocks


class Failing(Store):
    def __init__(self, error):
        super().__init__("memory://nowhere", "toy")
        self.error = error

    def begin(self, step):
        raise self.error

    def steps(self):
        raise self.error


def test_a_store_that_fails_is_said_once_a_kind_and_counted(tmp_path, url, caplog):
    run = Run(tmp_path, url)
    with run.mirror(Failing(PermissionError("key sig=abcdefgh123 is not valid"))) as mirror:
        for step in (1, 2):
            run.save(step, mirror)
            wait_until(lambda: not mirror._pending())
    said = [record.getMessage() for record in caplog.records if "checkpoint.mirror" in record.getMessage()]
    assert len(said) == 2 and "step-00000001 is not copied (PermissionError" in said[0]
    assert said[1] == "checkpoint.mirror: failed attempts: 6 x PermissionError; no step of this start is there"
    assert newest_step(run.path / "checkpoints", ALONE).name == "step-00000002"


class Hanging(Store):
    """A store that answers nothing."""

    def begin(self, step):
        threading.Event().wait()


def test_a_store_that_hangs_holds_up_neither_saves_nor_the_end(tmp_path, url, caplog):
    run = Run(tmp_path, url, mirror_wait_minutes=0.001)
    with run.mirror(Hanging(url, "toy")) as mirror:
        run.save(1, mirror)
        wait_until(lambda: mirror._at)
        for step in (2, 3, 4):
            run.save(step, mirror)
    assert mirror.passed_over == 2 and mirror._thread.daemon
    assert [text for text in caplog.messages if "slower than saves: step-00000002 is passed over" in text]
    assert "step-00000001 and step-00000004 is not complete there" in caplog.text


def test_a_run_that_failed_or_was_stopped_waits_less(tmp_path, url, monkeypatch):
    monkeypatch.setattr(uploads, "STOPPED_S", 0.01)
    run = Run(tmp_path, url, mirror_wait_minutes=10_000)
    with run.mirror(Hanging(url, "toy"), stopped=True) as mirror:
        run.save(1, mirror)
    with pytest.raises(ResourceError), run.mirror(Hanging(url, "toy")) as mirror:
        run.save(2, mirror)
        raise ResourceError("full")


def test_a_step_that_is_deleted_here_is_copied_all_the_same(tmp_path, url):
    run = Run(tmp_path, url)
    mirror = run.mirror()
    shutil.rmtree(run.save(1, mirror))
    with mirror:
        pass
    assert names(run.store.steps().complete) == [1]


class Lossy(Store):
    """A store in which the first write of a state loses its last byte, and says nothing of it."""

    lost = False

    @property
    def _files(self):
        return SimpleNamespace(**{name: getattr(self._opened[0], name) for name in USED}, open=self.open)

    def open(self, path, mode):
        file = self._opened[0].open(path, mode)
        if mode == "wb" and path.endswith("state.json") and not self.lost:
            self.lost, write = True, file.write
            file.write = lambda block: write(block[:-1])
        return file


USED = ("makedirs", "rm", "rm_file", "exists", "ls", "invalidate_cache")


def test_a_write_is_read_back_and_tried_again_and_what_is_there_is_not_written_anew(tmp_path):
    run = Run(tmp_path, "memory://lossy")
    with run.mirror(Lossy(run.cfg.mirror, "toy")) as mirror:
        step = run.save(1, mirror)
    assert mirror.failures == {"Changed": 1} and names(run.store.steps().complete) == [1]
    run.lose()
    run.fetch()
    assert newest_step(run.path / "checkpoints", ALONE) == step
    with run.mirror(Dying(run.cfg.mirror, 0)) as mirror:
        mirror.add(step, anew=False)
    assert mirror.newest == "step-00000001"


def test_damage_on_the_own_disk_is_not_copied(tmp_path, url, caplog):
    run = Run(tmp_path, url)
    step = run.save(1)
    body = (step / "state.json").read_bytes()
    (step / "state.json").write_bytes(body.replace(b"1", b"2", 1))
    with run.mirror() as mirror:
        mirror.add(step)
    assert not run.store.steps().complete and "not as its manifest says" in caplog.text


def test_a_store_that_does_not_answer_at_the_start_is_refused(tmp_path, monkeypatch):
    run = Run(tmp_path, "memory://nowhere")
    monkeypatch.setattr(restore, "Store", lambda url, run: Failing(TimeoutError("no route")))
    assert not is_mirrored(run.cfg, run.where)
    with pytest.raises(CheckpointError, match=r"does not answer \(TimeoutError: no route\); whether the run has steps"):
        run.fetch()
    monkeypatch.setattr(restore, "Store", lambda url, run: Failing(OSError(28, "No space left on device")))
    with pytest.raises(ResourceError, match="No space left"):
        run.fetch()
    run.save(1)
    run.fetch()  # nothing is lost: nobody asks


def test_a_fresh_run_does_not_take_up_what_is_there(tmp_path, url):
    run = Run(tmp_path, url)
    run.fetch(fresh=True)
    with run.mirror() as mirror:
        run.save(1, mirror)
    run.lose()
    with pytest.raises(ConfigError, match=r"run.fresh=true: the mirror holds step-00000001 of toy"):
        run.fetch(fresh=True)


def test_urls_that_are_refused():
    for url, rule in {
        "/backup": r"checkpoint.mirror=/backup: a URL, such as s3://bucket/folder",
        "nope://bucket": r"nope://: fsspec knows no such store",
        "https://user:word@host/x": r"=https://host/x: web servers take no files",
        "wandb://x": r"not installed here .*pip install wandbfs",
    }.items():
        with pytest.raises(ConfigError, match=rule):
            check_mirror(url)
    for url in ("file:///disk", "memory://x", None):
        check_mirror(url)
