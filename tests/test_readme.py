"""The README's python code blocks run, in order, as one program."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(not README.is_file(), reason="there is no README.md (an installed copy of the tests)")
def test_code_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = README.read_text()
    blocks = [(m.start(1), m[1]) for m in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)]
    assert blocks, "README.md shows no python"
    monkeypatch.chdir(tmp_path)  # what they save stays out of the repository
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    without_download(monkeypatch)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for start, block in blocks:
        line = text.count("\n", 0, start)
        exec(compile("\n" * line + block, str(README), "exec"), namespace)  # errors name the README's line


def without_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained weights become random ones: the tests need no network."""
    import timm
    import torchvision

    create, get = timm.create_model, torchvision.models.get_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kw: create(name, **kw))
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights=None, **kw: get(name, weights=None, **kw))
