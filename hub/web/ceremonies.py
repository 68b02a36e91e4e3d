"""The two ceremonies of WebAuthn, by py_webauthn. Apart, because it takes 14 MiB: loaded when somebody uses them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    options_to_json,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

_VERIFIED = UserVerificationRequirement.REQUIRED


class Refused(Exception):
    """The answer of the authenticator does not count."""


def creation_options(rp_id: str, user_id: bytes, login: str, name: str, known: Iterable[bytes]) -> tuple[str, bytes]:
    """(JSON for navigator.credentials.create(), the challenge)."""
    options = generate_registration_options(
        rp_id=rp_id,
        rp_name="edgehub",
        user_id=user_id,
        user_name=login,
        user_display_name=name,
        exclude_credentials=[PublicKeyCredentialDescriptor(id=credential_id) for credential_id in known],
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED, user_verification=_VERIFIED
        ),
    )
    return options_to_json(options), options.challenge


def check_creation(credential: dict[str, Any], challenge: bytes, rp_id: str, origin: str) -> tuple[bytes, bytes, int]:
    """(id, public key, counter). Raises Refused."""
    try:
        verified = verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=rp_id,
            expected_origin=origin,
            require_user_verification=True,
        )
    except (WebAuthnException, ValueError, KeyError, TypeError) as error:
        raise Refused from error
    return verified.credential_id, verified.credential_public_key, verified.sign_count


def request_options(rp_id: str) -> tuple[str, bytes]:
    """(JSON for navigator.credentials.get(), the challenge); no credential is named."""
    options = generate_authentication_options(rp_id=rp_id, user_verification=_VERIFIED)
    return options_to_json(options), options.challenge


def check_use(
    credential: dict[str, Any], challenge: bytes, rp_id: str, origin: str, public_key: bytes, counter: int
) -> int:
    """The new counter. Raises Refused."""
    try:
        verified = verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=rp_id,
            expected_origin=origin,
            credential_public_key=public_key,
            credential_current_sign_count=counter,
            require_user_verification=True,
        )
    except (WebAuthnException, ValueError, KeyError, TypeError) as error:
        raise Refused from error
    return verified.new_sign_count
