"""Settings of TLS on the REST and gRPC ports: certificate, key, and the CA of clients."""

from __future__ import annotations

from dataclasses import dataclass

from predictors.settings.bounds import SettingsGroup, bounded


@dataclass(frozen=True, slots=True)
class TlsSettings(SettingsGroup):
    """TLS on the REST and gRPC ports, and on an admin port that is not on loopback. The health and
    metrics ports stay plain HTTP."""

    section = "tls"

    cert_file: str = ""
    """File with the certificate and the intermediate ones below its root, as PEM. Empty: no
    TLS."""
    key_file: str = ""
    """File with the certificate's private key, as PEM without a password."""
    client_ca_file: str = ""
    """File with certificates of authorities, as PEM: clients must present a certificate signed by
    one of them (mTLS). A kubelet has none, so set `server.health_port` too. Empty: clients need no
    certificate."""
    reload_s: float = bounded(10.0, least=0.1)
    """The files are read again this often. New content is used for connections that come after;
    open ones stay. Files that can't be used are logged, and the old ones stay in use."""
