"""Files are UTF-8, whatever the encoding of the locale is."""

import ast
from collections.abc import Callable
from pathlib import Path

from cli.help import list_options
from tests.conftest import PROJECT
from tests.test_architecture import COMMANDS, MAY_IMPORT

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_what_the_c_locale_cannot_print_is_escaped(shell: Callable) -> None:
    answer = shell("--cfg", "job", **C_LOCALE)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "  accelerator: auto # cpu, gpu, mps \\u2026\n" in answer.stdout


def test_help_is_printed_in_the_c_locale(shell: Callable) -> None:
    answer = shell("--help", **C_LOCALE)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert list_options().encode("ascii", "backslashreplace").decode() in answer.stdout


def test_every_text_file_is_opened_with_its_encoding() -> None:
    files = [PROJECT / f"{name}.py" for name in COMMANDS]
    files += [file for package in MAY_IMPORT for file in (PROJECT / package).rglob("*.py")]
    assert [place for file in files for place in without_encoding(file)] == []


def without_encoding(file: Path) -> list[str]:
    """Return the calls that open a file as text and do not say its encoding."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        texts = [
            word.value for word in [*node.args, *(k.value for k in node.keywords)] if isinstance(word, ast.Constant)
        ]
        binary = any(isinstance(text, str) and text in ("rb", "wb", "ab", "r+b") for text in texts)
        of_library = isinstance(owner, ast.Name) and owner.id in ("Image", "gzip", "tarfile", "zipfile", "os")
        if name not in ("open", "read_text", "write_text") or binary or of_library:
            continue
        if "encoding" not in [keyword.arg for keyword in node.keywords]:
            found.append(f"{file.name}, line {node.lineno}")
    return found
