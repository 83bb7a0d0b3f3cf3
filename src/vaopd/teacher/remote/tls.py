"""Certificates of a teacher's server, and their verification by a trainer."""

import os
import shlex
import ssl
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from vaopd.errors import ConfigError

MAX_BYTES = 1 << 20
"""Size of a file of certificates at most."""


def check_server_files(certificate: Path | None, key: Path | None) -> None:
    """Check that a server can prove who it is with these files; None for both is plain HTTP.

    Raises:
        ConfigError: One is missing, cannot be used, or other users can read the key.
    """
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        given, other = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise ConfigError(f"{given} is given without {other}; give both files, or neither")
    _check_size("--tls-cert", certificate)
    _check_size("--tls-key", key)
    if os.name == "posix":
        check_private(f"--tls-key {key}", key, key.stat().st_mode)
    try:
        # Otherwise OpenSSL would ask for the password of an encrypted key at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=str)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({_reason(error)}); give "
            "a PEM file of the server's certificate, then those of its issuers, and a PEM file of "
            "its key without a password"
        ) from None


def client_context(ca_file: str | None) -> ssl.SSLContext | bool:
    """Return what a client verifies servers by: a file of certificates, or those of the system.

    Raises:
        ConfigError: The file holds no certificates.
    """
    if ca_file is None:
        return True
    _check_size("teacher.ca_file", Path(ca_file))
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(
            f"teacher.ca_file {ca_file} cannot be used ({_reason(error)}); give a PEM file of the "
            "certificate that issued those of the servers"
        ) from None


def check_private(name: str, path: Path, mode: int) -> None:
    """Check that other users cannot read a file.

    Raises:
        ConfigError: They can; names the command that changes it.
    """
    if mode & 0o077:
        raise ConfigError(
            f"{name} can be read by other users (mode {mode & 0o777:04o}); run "
            f"chmod 600 {shlex.quote(str(path))}"
        )


def is_exposed(url: str) -> bool:
    """Return whether others could read what is sent to an address: HTTP to another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Return whether a host is certainly this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def refused_certificate(error: BaseException | None) -> str:
    """Return why the certificate of a server was refused, '' if an error has another cause."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return ""


def _check_size(name: str, path: Path) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} {path} cannot be read ({_reason(error)})") from None
    if size is None:
        raise ConfigError(f"{name} {path} is not a file; give the path of a PEM file")
    if size > MAX_BYTES:
        raise ConfigError(f"{name} {path} is longer than a file of certificates; name a PEM file")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM, or a key with a password").replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
