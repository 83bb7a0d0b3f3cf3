"""The token by which a trainer is authorised at a teacher's server.

It is never in a recipe or a command line, because other users can read both.
"""

import os

from vaopd.errors import ConfigError

TOKEN_VARIABLE = "VAOPD_TEACHER_TOKEN"


def environment_token() -> str | None:
    """Return the token of the environment, if it is set.

    Raises:
        ConfigError: It is not a valid token.
    """
    text = os.environ.get(TOKEN_VARIABLE)
    return None if text is None else checked_token(text, f"environment variable {TOKEN_VARIABLE}")


def checked_token(text: str, place: str) -> str:
    """Return a token without blanks around it.

    Raises:
        ConfigError: It is not valid in an HTTP header.
    """
    token = text.strip()
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(
            f"{place} holds no token; write one word of ASCII letters, digits and signs into it"
        )
    return token
