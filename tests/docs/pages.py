"""The commands of a page of the documentation, as one shell script, and its Python, as one program that ends it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


def blocks(page: Path, language: str = "bash") -> Iterator[tuple[int, list[str]]]:
    """Yield the blocks of a page in a language, each with the number of its first line."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        if lines[number] == f"```{language}":
            end = lines.index("```", number)
            yield number + 2, lines[number + 1 : end]
            number = end
        number += 1


def commands(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Join the lines of a block into commands, each with the offset of its first line; bash says what is whole."""
    start = 0
    for end in range(1, len(lines) + 1):
        command = "\n".join(lines[start:end])
        checked = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
        if checked.returncode == 0 and not checked.stderr:  # an open heredoc is only warned of
            if command.strip():
                yield start, command
            start = end
    assert start == len(lines), f"not a whole command: {lines[start:]}"


def program(page: Path) -> str:
    """Return the Python of a page as one program, in which everything stands in the page's line; "" without any."""
    lines = [""] * len(page.read_text().splitlines())
    for first, block in blocks(page, "python"):
        lines[first - 1 : first - 1 + len(block)] = block
    return "\n".join(lines) if any(lines) else ""


def script(page: Path) -> str:
    """Return one shell script of all commands of a page, which stops at the first with another exit code than said.

    At its end it runs the page's Python, if there is any, as a file of that name.
    """
    parts = ['make() { command make -n "$@" > listed; }']
    for first, lines in blocks(page):
        for offset, command in commands(lines):
            said = re.search(r"# exits with (\d+)", command.splitlines()[-1])
            expected = said[1] if said else "0"
            complaint = f"{page.name}:{first + offset}: exited with $code, not with {expected}"
            parts.append(f'{command}\ncode=$?; [ $code = {expected} ] || {{ echo "{complaint}" >&2; exit 1; }}\n')
    if program(page):
        parts.append(f"python {page.stem}.py")
    return "\n".join(parts)


def carry_out(
    page: Path, place: Path, variables: Mapping[str, str] = os.environ, python: Path = Path(sys.executable)
) -> None:
    """Execute the commands of a page in a folder; fail, with what they wrote, where one exits otherwise than said."""
    binaries = os.pathsep.join(dict.fromkeys([str(python.parent), str(Path(sys.executable).parent)]))
    env = {
        **variables,
        "PATH": f"{binaries}{os.pathsep}{variables['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # threads that wait for each other on a busy machine are slower than one
    }
    if code := program(page):
        (place / f"{page.stem}.py").write_text(code)
    log = place.with_name("log")
    with log.open("w") as output:
        shell = ["bash", "-c", script(page)]
        done = subprocess.run(shell, cwd=place, env=env, stdout=output, stderr=output, check=False)
    assert done.returncode == 0, log.read_text()[-4000:]
