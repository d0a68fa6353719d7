"""README and docs: every command that they print is one, with flags that it has, and every file that they name is there."""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("pretrained/*.md")), *sorted(ROOT.glob("data/*/README.md"))]

PASS_ON = "scripts.recipes", "scripts.measure.steer"  # flags that they do not know, to another command


class Parsed(Exception):
    """A command has read its flags."""


def documented():
    """The words of every command that a page gives and that runs Python here, variables filled in."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for block in [*blocks, *(code.replace("\n", " ") for code in re.findall(r"`((?:python|torchrun) [^`]+)`", text))]:
            known = {}
            for line in block.replace("\\\n", " ").splitlines():
                if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                    known[f"${assigned[1]}"] = assigned[2]
                    continue
                for name, value in known.items():
                    line = line.replace(name, value)
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    del words[0]
                if words and words[0] in ("python", ".venv/bin/python", "torchrun") and ("-m" in words or ".py" in line):
                    yield pytest.param(words, id=f"{page.name}: {' '.join(words)[:60]}")


def as_module(words):
    """The module that a command runs, and its arguments."""
    if words[1] == "-m":
        return words[2], words[3:]
    script = next(k for k, word in enumerate(words) if word.endswith(".py"))
    return words[script].removesuffix(".py").replace("/", "."), words[script + 1 :]


@pytest.mark.parametrize("words", list(documented()))
def test_a_documented_command_has_these_flags(words, monkeypatch):
    read = argparse.ArgumentParser.parse_known_args

    def parse(*args, **kwargs):
        namespace, rest = read(*args, **kwargs)
        assert not rest or module in PASS_ON, rest
        raise Parsed

    module, flags = as_module(words)
    path = module.replace(".", "/")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    monkeypatch.setattr(sys, "argv", [module, *flags])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(str(ROOT / f"{path}.py" if (ROOT / f"{path}.py").exists() else ROOT / path / "__main__.py"), run_name="__main__")
    except Parsed:
        return
    except ImportError as error:
        pytest.skip(f"{module} wants another package: {error}")
    except SystemExit:
        if "is missing: pip install" in said.getvalue():
            pytest.skip(said.getvalue())
    pytest.fail(f"{shlex.join(words)}: {said.getvalue()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_scripts_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text) for link in link if link]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    missing += [script for script in re.findall(r"\bbash ([\w/]+\.sh)", text) if not (ROOT / script).exists()]
    missing += [file for file in re.findall(r"pip install -r ([\w/.-]+\.txt)", text) if not (ROOT / file).exists()]
    assert not missing, missing
