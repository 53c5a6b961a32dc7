"""What the environment tells the application. Each field is the environment variable of the same name."""

import sys
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

# gunicorn's own "worker failed to boot": its master stops too, instead of trying again for ever.
CANNOT_BOOT = 3

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)
]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_ignore_empty=True)

    mongo_uri: SecretStr = Field(description="where MongoDB is, as mongodb://user:password@host:port/")
    mongo_db: str = Field(description="the name of the MongoDB database")
    mongo_max_pool_size: int = Field(50, ge=1, description="MongoDB connections per worker")
    mongo_timeout_ms: int = Field(30_000, ge=1, description="the longest a MongoDB operation may take")
    redis_url: SecretStr = Field(description="where Redis is, as redis://:password@host:port/db")
    chroma_server_host: str = Field(description="the host name or address of ChromaDB")
    chroma_server_port: int = Field(ge=1, le=65535, description="the port of ChromaDB")
    cache_ttl_seconds: int = Field(60, ge=1, description="how long an item stays in the cache")
    environment: str = Field("development", description="shown by /health")
    log_level: LogLevel = Field("INFO", description="how much is logged")


def load() -> Settings:
    """The settings, or one sentence for each that is missing or wrong (never its value), and the end."""
    try:
        return Settings()
    except ValidationError as error:
        for problem in error.errors(include_input=False):
            print(sentence(problem), file=sys.stderr)
        raise SystemExit(CANNOT_BOOT) from None


def sentence(problem) -> str:
    field = problem["loc"][0]
    variable, meaning = field.upper(), Settings.model_fields[field].description
    if problem["type"] == "missing":
        return f"{variable} is not set: it is {meaning}."
    return f"{variable} ({meaning}) is not valid: {problem['msg']}."
