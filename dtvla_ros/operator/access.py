"""Who may open the page: a browser on this machine, or one that has the token."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from dtvla_ros.errors import UserError

SHORTEST = 16  # characters of a token
MAKE = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"


@dataclass(frozen=True, slots=True)
class Access:
    """The address that a page is served on, and the secret that opens it.

    ``token`` '': anyone who reaches the address; only on loopback. Raises UserError otherwise.
    """

    host: str
    token: str = ''

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise UserError(f'parameter host = "{self.host}": others reach this address; set '
                            f'token, too, to a secret: {MAKE}')
        if self.token and len(self.token) < SHORTEST:
            raise UserError(f'parameter token: {len(self.token)} characters, at least {SHORTEST} '
                            f'expected: {MAKE}')

    def refuse_page(self, token: str) -> str:
        """Return why the page is not given to a request with this token, '' if it is."""
        if not self.token or hmac.compare_digest(token.encode(), self.token.encode()):
            return ''
        return 'this page needs its token: open http://HOST:PORT/?token=TOKEN'

    def refuse_socket(self, host: str, origin: str, token: str) -> str:
        """Return why a WebSocket is refused, '' if it is not.

        ``host``, ``origin``: headers of the request. A page of another site names another origin;
        one whose name was made to lead here has another host.
        """
        if not origin or urlsplit(origin).netloc != host:
            return f'Origin "{origin}" is not the page\'s own, "{host}"'
        if is_loopback(self.host) and not is_loopback(urlsplit(origin).hostname or ''):
            return f'Host "{host}" is not this machine'
        return self.refuse_page(token)


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address leads to this machine only."""
    try:
        return host == 'localhost' or ip_address(host).is_loopback
    except ValueError:
        return False
