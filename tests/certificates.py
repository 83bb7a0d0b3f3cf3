"""Certificates of 127.0.0.1, made by the openssl of this machine."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificate:
    file: Path
    key: Path


def make_certificate(folder: Path, name: str, subject: str = "IP:127.0.0.1") -> Certificate:
    """Make a certificate that signs itself; skip the test where openssl is not installed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    command = [
        *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-addext", f"subjectAltName={subject}", "-out", made.file, "-keyout", made.key),
    ]
    subprocess.run(command, check=True, capture_output=True)
    made.key.chmod(0o600)
    return made
