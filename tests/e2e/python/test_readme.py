"""The Python of README.md runs as it stands, but for the address."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).resolve().parents[3] / "README.md"


def block(first_line, address):
    """The code block that begins with `first_line`, pointed at the server under test."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = [code for code in blocks if code.startswith(first_line)]
    return code.replace("127.0.0.1:8080", address)


def test_readme_worker_and_call(server):
    worker = subprocess.Popen([sys.executable, "-c", block("# worker.py", server.address)])
    try:
        # The call waits for a worker, however late it comes.
        said = subprocess.run(
            [sys.executable, "-c", block("# call.py", server.address)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert said.stdout == "Hello, Ada!\n"
    finally:
        worker.kill()
        worker.wait()
