"""The certificate that the proxy shows."""

from collections.abc import Mapping

from stackops import settings
from stackops.diagnosis.live import certificate
from stackops.watching import Figures, gauge


def figures(env: Mapping[str, str]) -> Figures:
    """Yield its first and its last moment. Without one there is no figure, and a rule misses it."""
    from cryptography import x509

    served = certificate(settings.need(env, "STACK_SERVED"))
    if "pem" in served:
        shown = x509.load_pem_x509_certificate(served["pem"].encode())
        first, last = shown.not_valid_before_utc.timestamp(), shown.not_valid_after_utc.timestamp()
        yield gauge(
            "stack_certificate_begins_seconds", "First moment of the certificate that is shown.", first
        )
        yield gauge("stack_certificate_ends_seconds", "Last moment of the certificate that is shown.", last)
