"""The run directory: what is claimed and written."""

import errno
import json
import logging
import os
import resource

import pytest
from read_only import make_read_only

import pretrain.train.run_dir.base
from pretrain.compose import compose
from pretrain.errors import ConfigError, ResourceError
from pretrain.train.run_dir.base import FILES, FOLDERS, LOG_LEVEL, RunConfig, RunDirectory
from pretrain.train.run_dir.changes import changes
from pretrain.train.run_dir.record import check_written_by, read_record


@pytest.fixture
def run(tmp_path):
    return RunDirectory.claim(RunConfig(name="a", root=str(tmp_path)))


def test_a_directory_has_one_holder_at_a_time(run, tmp_path):
    with pytest.raises(ConfigError, match=r"run\.name=a: .* is in use by pid \d+ on host"):
        RunDirectory.claim(RunConfig(name="a", root=str(tmp_path)))
    RunDirectory.claim(RunConfig(name="b", root=str(tmp_path)))


def test_nothing_of_a_start_is_recorded_before_it_is_accepted(run):
    run.record(parameters=5)
    with pytest.raises(ConfigError, match=r"run\.json: not readable"):
        read_record(run.path)
    run.begin()
    run.record(exit=0)
    assert read_record(run.path) == {"parameters": 5, "exit": 0}


def test_a_later_start_keeps_what_it_does_not_say_anew(run, tmp_path):
    (run.path / "run.json").write_text(json.dumps({"parameters": 5, "exit": 6}))
    run._lock.close()
    later = RunDirectory.claim(RunConfig(name="a", root=str(tmp_path)))
    later.record(exit=0)
    later.begin()
    assert read_record(later.path) == {"parameters": 5, "exit": 0}


def test_fresh_refuses_a_run_that_has_begun_and_only_that(run, tmp_path):
    cfg = RunConfig(name="a", root=str(tmp_path), fresh=True)
    cfg.check_fresh()
    run.begin()
    with pytest.raises(ConfigError, match=r"run\.fresh=true: .* holds a run"):
        cfg.check_fresh()
    RunConfig(name="a", root=str(tmp_path)).check_fresh()


@pytest.mark.parametrize("name", ["", *FOLDERS, *FILES])
def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path, monkeypatch, name):
    run = tmp_path / "a"
    for folder in FOLDERS:
        (run / folder).mkdir(parents=True)
    for file in FILES:
        (run / file).write_text("{}")
    make_read_only(run / name, monkeypatch)
    with pytest.raises(ConfigError, match=r"run\.root=.*: cannot write the run directory .*Read-only file sys") as told:
        RunDirectory.claim(RunConfig(name="a", root=str(tmp_path)))
    assert str(run / name) in str(told.value)
    assert not list(run.rglob(".tmp-*"))


def test_a_lock_that_cannot_be_signed_is_refused_by_name(tmp_path, monkeypatch):
    def sign(lock):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(pretrain.train.run_dir.base, "sign", sign)
    with pytest.raises(ConfigError, match=r"run\.root=.*: cannot write the run directory .*Operation not permitted"):
        RunDirectory.claim(RunConfig(name="a", root=str(tmp_path)))


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left_of_it(run, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cfg = compose([])
    monkeypatch.setattr(os, "fsync", fsync)
    for name, write in {
        "config.yaml": lambda: run.write_config(cfg),
        "tokenizer.json": lambda: run.write("tokenizer.json", bytes(200)),
        "run.json": run.begin,
    }.items():
        with pytest.raises(ResourceError, match=rf"{run.path / name}: cannot be written \(.*No space left"):
            write()
    assert [path.name for path in run.path.iterdir()] == ["lock"]


def test_a_claim_leaves_nothing_behind_but_the_lock(run):
    assert [path.name for path in run.path.iterdir()] == ["lock"]


def test_secrets_are_written_nowhere_and_a_run_resumes_without_a_word(run, monkeypatch):
    monkeypatch.setenv("STORE_PASSWORD", "correct horse")
    words = ["data=text", "data.sources.text.paths=['https://me:S3CRET@host/a.txt','${oc.env:STORE_PASSWORD}']"]
    run.write_config(compose(words))
    with run.log_to("headwater_secrets"):
        log = logging.getLogger("headwater_secrets")
        log.warning("cannot open %s", "https://me:S3CRET@host/a.txt")
        log.error("told: %s", {"api_key": "S3CRET", "other": "correct horse"})
    told = (run.path / "config.yaml").read_text() + (run.path / "log.txt").read_text()
    assert "S3CRET" not in told and "correct horse" not in told and "https://<redacted>@host/a.txt" in told
    assert changes(run.path, compose(words)) == []


def test_a_configuration_says_which_program_wrote_it(run):
    run.write_config(compose([]))
    check_written_by("pretrain", run.path)
    with pytest.raises(ConfigError, match="a run of python -m pretrain, none of python -m finetune"):
        check_written_by("finetune", run.path)


def test_messages_go_to_the_log_only_inside_the_block(run):
    log = logging.getLogger("headwater_test_of_run_dir")
    with run.log_to(log.name):
        log.debug("inside")
    log.warning("after")
    written = (run.path / "log.txt").read_text()
    assert "DEBUG headwater_test_of_run_dir: inside" in written and "after" not in written


def test_the_environment_says_from_which_level_on_messages_are_printed(run, capfd, monkeypatch):
    log = logging.getLogger("headwater_test_of_levels")

    def said():
        with run.log_to(log.name):
            log.info("the plan")
            log.warning("a warning")
        return capfd.readouterr().err

    assert said() == "the plan\nwarning: a warning\n"
    monkeypatch.setenv(LOG_LEVEL, "WARNING")
    assert said() == "warning: a warning\n"
    assert (run.path / "log.txt").read_text().count("the plan") == 2
    monkeypatch.setenv(LOG_LEVEL, "loud")
    with pytest.raises(ConfigError, match=r"HEADWATER_LOG_LEVEL=loud: one of .*WARNING"):
        said()


def test_a_full_disk_costs_messages_and_one_word(run, capfd):
    limit, logger = resource.getrlimit(resource.RLIMIT_FSIZE), logging.getLogger("pretrain.train.session")
    (run.path / "log.txt").write_text("x" * 10_000)  # more than what goes to the screen, which is a file here
    try:
        with run.log_to("pretrain"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
            for number in range(5):
                logger.warning("message %d %s", number, "x" * 90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capfd.readouterr().err
    assert said.count("log.txt: messages are lost") == 1 and "Traceback" not in said
    assert all(f"message {number}" in said for number in range(5)), "on the screen they are"


def test_a_full_disk_leaves_the_record_before_and_is_named(run):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    run.record(parameters=5)
    run.begin()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        with pytest.raises(ResourceError, match=r"run\.json: cannot be written \(.*File too large"):
            run.note("x" * 99)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_record(run.path) == {"parameters": 5}
