"""Who an agent is, and whom it lets in.

certificates   the X.509 choices: keys, requests, certificates, revocation lists, fingerprints
identity       an agent's own files, read and checked; read again when they are renewed
admission      what a peer must show beyond a certificate of the authority: not revoked, on the allow-list
authority      the operator's folder: sign requests, renew, revoke, package
site           the agent's home: make a key and a request, install a package
signatures     what an agent signs with the certificate's key; seal: its announcements of itself

An agent *is* its name. Its key may change, so nothing else is ever derived from the key.
"""

from p2pqg.security.admission import Admission
from p2pqg.security.authority import issue
from p2pqg.security.certificates import AGENT_NAME, fingerprint
from p2pqg.security.identity import Identity, TlsFiles

__all__ = ["AGENT_NAME", "Admission", "Identity", "TlsFiles", "fingerprint", "issue"]
