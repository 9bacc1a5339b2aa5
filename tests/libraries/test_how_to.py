"""The programs of docs/how-to-libraries.md run as they stand there, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to-libraries.md"
SECONDS_MAX = 600


def programs():
    """(section, program), in the page's order."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    for section in sections:
        title = section.partition("\n")[0]
        yield from ((title, block) for block in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE))


PROGRAMS = list(programs())


def test_page_has_programs_for_each_library():
    titles = " ".join(title for title, _ in PROGRAMS)
    for library in ("transformers", "safetensors", "accelerate", "Trainer", "Lightning", "diffusers", "peft", "timm", "DDP"):
        assert library in titles


@pytest.mark.parametrize("program", [block for _, block in PROGRAMS], ids=[title for title, _ in PROGRAMS])
def test_program_of_the_page(program, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(program)
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_TORCH_DEVICE"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
