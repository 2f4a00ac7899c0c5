"""TLS: whose certificates are trusted, and what is wrong with one that is not."""

from __future__ import annotations

import os
import ssl
import stat

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import files

# x509_vfy.h: the certificate is another host's (X509_V_ERR_HOSTNAME_MISMATCH, ..._IP_ADDRESS_MISMATCH).
_OF_ANOTHER = (62, 64)
# X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_OUT_OF_TIME = (9, 10)


def context(ca_file: str = "") -> ssl.SSLContext:
    """Return what checks a server's certificate: by `ca_file` alone, else by what this machine trusts.

    `ca_file` has certificates as PEM: of CAs, or the server's own. Raises OperatorError if it has not.
    """
    hint = "see tls: ca_file: in the config"
    try:
        # A FIFO would be waited for.
        if ca_file and not stat.S_ISREG(os.stat(ca_file).st_mode):
            raise OperatorError(f"{ca_file} is not a regular file", hint=hint)
        made = ssl.create_default_context(cafile=ca_file or None)
    except ssl.SSLError:
        raise OperatorError(f"{ca_file} has no certificate as PEM text in it", hint=hint) from None
    except OSError as error:
        raise OperatorError(f"could not read {ca_file}: {files.reason(error)}", hint=hint) from None
    if ca_file:
        # As curl --cacert does: Python 3.13 alone refuses CAs without the newer extensions.
        made.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
        made.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return made


def what_to_do(error: ssl.SSLCertVerificationError) -> str:
    """Return what makes the certificate trusted that `error` is about."""
    if error.verify_code in _OF_ANOTHER:
        return "have url name the server as its certificate does"
    if error.verify_code in _OUT_OF_TIME:
        return "renew the server's certificate, or set the clock"
    return "name the certificate of the CA that has signed it in the config: tls: ca_file:"
