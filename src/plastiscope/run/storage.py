"""Writing that survives a kill: a file is either the old one or the new one, never half of each."""

import io
import json
import math
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import IO, Any


def write_atomic(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, flush it to the disk, rename it; an OSError names it, the old one stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what writers in `folder` left unfinished as they were killed; for the only one that writes there now."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def write_by(path: Path, save: Callable[[IO[bytes]], Any]) -> bytes:
    """Write atomically what `save(file)` writes, such as `lambda file: torch.save(state, file)`; returns the bytes."""
    buffer = io.BytesIO()
    save(buffer)
    write_atomic(path, buffer.getvalue())
    return buffer.getvalue()


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, atomically; what is not finite becomes null."""
    write_atomic(path, (json.dumps(plain(content), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; None if there is none or if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def plain(content: Any) -> Any:
    """Containers, numbers and strings that JSON knows; numbers that are not finite become None, enums their values."""
    if isinstance(content, Enum):
        return plain(content.value)
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content if isinstance(content, int | str | bool | None) else str(content)
