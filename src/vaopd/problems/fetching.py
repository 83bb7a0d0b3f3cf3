"""Downloads images from public web servers into a folder, within limits of size and time."""

import hashlib
import ipaddress
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vaopd.errors import ProblemError

if TYPE_CHECKING:
    import httpx2

MAX_BYTES = 32 * 2**20
SECONDS = 30.0
"""Limit for one image, its redirects included."""

WAIT_SECONDS = 10.0
"""Limit for a connection, and for each part of an answer."""

MAX_REDIRECTS = 3
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses behind which a gateway reaches any IPv4 address, also a private one."""

Resolve = Callable[[str, int], Sequence[str]]


def fetch_image(address: str) -> Path:
    """Return the file of an image on a public web server, downloaded unless it was before.

    Raises:
        ProblemError: The address is not a public one, or does not give an image in time and size.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return ImageFetcher(Path(cache) / "vaopd" / "images").fetch(address)


def addresses_of(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host.

    Raises:
        OSError: The name is not known.
    """
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, and stands for no other one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        holds_another = ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip in _TRANSLATED
        if holds_another:
            return False
    return ip.is_global and not ip.is_multicast


class ImageFetcher:
    """Downloads images into a folder, in which each has the hash of its address as its name."""

    def __init__(
        self,
        folder: Path,
        *,
        resolve: Resolve = addresses_of,
        transport: "httpx2.BaseTransport | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.resolve = resolve
        self.transport = transport
        self.clock = clock

    def fetch(self, address: str) -> Path:
        """Return the file of an image; see ``fetch_image``."""
        path = self.folder / hashlib.sha256(address.encode()).hexdigest()
        if not path.is_file():
            try:
                body = self._download(address)
            except (_Refused, UnicodeError) as reason:
                raise ProblemError(
                    f"the image {address:.80} cannot be downloaded: {reason}; download it yourself "
                    "and name the file"
                ) from None
            self._write(path, body)
        return path

    def _download(self, address: str) -> bytes:
        import httpx2

        deadline = self.clock() + SECONDS
        # A proxy of the environment would resolve the name itself. Nothing is decompressed.
        with httpx2.Client(
            transport=self.transport,
            timeout=WAIT_SECONDS,
            trust_env=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "vaopd"},
        ) as client:
            try:
                for _ in range(MAX_REDIRECTS + 1):
                    answer = self._ask(client, httpx2.URL(address), deadline)
                    if isinstance(answer, bytes):
                        return answer
                    address = answer
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise _Refused(f"{type(error).__name__}: {error}") from None
        raise _Refused(f"it redirects more than {MAX_REDIRECTS} times")

    def _ask(self, client: "httpx2.Client", url: "httpx2.URL", deadline: float) -> bytes | str:
        """Return the body, or the address of a redirect."""
        is_web = url.scheme in ("http", "https") and bool(url.host)
        if not is_web or (url.port or 0) > 65535:
            raise _Refused(f"{url!s:.80} is not an address of a web server")
        # Sent to the checked IP address: a name that is resolved again may give another one.
        target = url.copy_with(host=self._public_address(url))
        headers = {"Host": url.netloc.decode("ascii")}
        extensions = {"sni_hostname": url.host}
        with client.stream("GET", target, headers=headers, extensions=extensions) as response:
            if response.is_redirect:
                return str(url.join(response.headers["location"]))
            if response.status_code != 200:
                raise _Refused(f"the server answers with status {response.status_code}")
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise _Refused(f"it has more than {MAX_BYTES // 2**20} MiB")
                if self.clock() > deadline:
                    raise _Refused(f"it did not arrive in {SECONDS:.0f} s")
            return bytes(body)

    def _public_address(self, url: "httpx2.URL") -> str:
        try:
            found = self.resolve(url.host, url.port or (443 if url.scheme == "https" else 80))
        except OSError as error:
            raise _Refused(f"{url.host} is not a known host ({error.strerror or error})") from None
        for one in found:
            if not is_public(one):
                raise _Refused(f"{url.host} is {one}, which is not a public address")
        return found[0]

    def _write(self, path: Path, body: bytes) -> None:
        """Write a file whole; several processes may download the same one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
            Path(partial).replace(path)
        except OSError:
            with suppress(OSError):
                os.unlink(partial)
            raise


class _Refused(Exception):
    """The reason why an image is not downloaded."""
