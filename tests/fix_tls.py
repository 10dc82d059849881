"""Servers that speak TLS, and the authorities that vouch for them."""

from __future__ import annotations

import os
from pathlib import Path

from dagster_tools.embedded import Server

__all__ = ["speak_tls"]


def speak_tls(server: Server, folder: Path, *names: str) -> Path:
    """Restart a server with a certificate for these names, signed by an authority of its own.

    Return the file of that authority's certificate, for `sslrootcert`.

    Args:
        folder: For the authority's certificate; the server's goes to its data.
    """
    import trustme  # only here: the wheel is tested without it

    authority = trustme.CA()
    issued = authority.issue_cert(*names)
    certificate, key = server.data_dir / "tls.crt", server.data_dir / "tls.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    owner = server.data_dir.stat()
    for path in (certificate, key):
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(0o600)  # what PostgreSQL asks of a key
    trusted = folder / f"authority-{server.port}.pem"
    authority.cert_pem.write_to_path(trusted)
    server.restart(ssl=True, ssl_cert_file=str(certificate), ssl_key_file=str(key))
    return trusted
