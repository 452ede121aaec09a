"""List the programs."""

import ast
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("*.py")):
    text = path.read_text()
    if text.endswith("run(main)\n"):
        title = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
        print(f"python -m examples.ssd.{path.stem:15} {title}")
