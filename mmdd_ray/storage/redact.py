"""Hides credentials in text that people will read or share: settings dumps, logs, error messages."""

import re

REDACTED = "[redacted]"

# The last words count, whole: key_column, max_tokens and tokenizer are no credentials. The id of an
# access key names an account, so it is hidden as well.
_SECRET_NAME = re.compile(
    r"(^|_)(secret|password|passwd|passphrase|token|credentials?|signature|sig|sas)$"
    r"|^key$|(^|_)(api|access|secret|private|account|auth)_?key(_id)?$"
)
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # X-AmzToken, AWSAccessKeyId
_USER_INFO = re.compile(r"\b([a-zA-Z][\w+.-]*://)[^/?#@\s]*@")
_PARAMETER = re.compile(r"([?&])([^=&\s]+)=([^&\s]+)")


def redact(text: str, name: str = "") -> str:
    """``text`` without what looks like a credential.

    Examples:
        >>> redact("s3://me:secret@bucket/data")
        's3://[redacted]@bucket/data'
        >>> redact("https://host/data?X-Amz-Signature=abc&part=3")
        'https://host/data?X-Amz-Signature=[redacted]&part=3'

    Hidden are the whole text when ``name`` (of a setting or variable) says that it is a secret, the user part
    of URIs, and query parameters with such names, e.g. those of presigned URLs.
    """
    if text and is_secret(name):
        return REDACTED
    text = _USER_INFO.sub(rf"\1{REDACTED}@", text)
    return _PARAMETER.sub(
        lambda match: f"{match[1]}{match[2]}={REDACTED}" if is_secret(match[2]) else match[0], text
    )


def is_secret(name: str) -> bool:
    """Whether a setting, environment variable or query parameter of this name holds a credential."""
    words = _WORD_START.sub("_", name).replace("-", "_").lower()
    return bool(_SECRET_NAME.search(words))
