"""The book of one stream: what went over it, and so what the server must and must not send; kept by `xds_world`."""

from __future__ import annotations

from tests.property.xds_client import TYPES, Asked
from tests.xds.wire import Response
from xdsbpf.xds.session import Session


class Stream:
    """What has gone over one stream, as the server knows it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.asked: dict[str, Asked] = {}
        self.nonce: dict[str, str] = {}
        self.unanswered: dict[str, list[Response]] = {type_url: [] for type_url in TYPES}
        self.given: dict[str, dict[str, int]] = {type_url: {} for type_url in TYPES}
        """Editions that were sent last, or claimed; of a whole set that was refused, those of the one before."""
        self.taken: dict[str, dict[str, int]] = {type_url: {} for type_url in TYPES}
        """Editions of the last response that was accepted: who refuses the next whole set goes on with them."""
        self.due: dict[str, set[str]] = {type_url: set() for type_url in TYPES}
        """Names that may be sent without a change, and while a response is out: they were asked for, or came with a
        refused one, or their cluster has changed."""
        self.is_due: dict[str, bool] = dict.fromkeys(TYPES, False)
        """A whole set may be sent that equals the one before."""
        self.crossed: dict[str, set[str]] = {type_url: set() for type_url in TYPES}
        """Names given up in requests that crossed the response which is out (state of the world)."""
        self.unknown: dict[str, dict[str, int]] = {type_url: {} for type_url in TYPES}
        """What the client may have of another stream in a version that is not there any more: the edition, or 0."""
        self.refused: dict[str, dict[str, int]] = {type_url: {} for type_url in TYPES}
        self.gone: dict[str, set[str]] = {type_url: set() for type_url in TYPES}
        """Names that were not there for a while, since they were sent last."""
        self.withheld: set[tuple[str, int]] = set()
        """Editions that were refused at any time."""
        self.knows_accepted: set[str] = set()
        """Types of which the server knows what the client has in force."""
        self.frozen: set[str] = set()
        """Types of which it does not know that, and the client refused all that it was sent."""
        self.owed: set[str] = set()
        """Clusters whose endpoints must follow."""
