from groundwork.roles import role
from groundwork.settings import RoleSettings


class Settings(RoleSettings):
    role = "redis"


@role(Settings, "redis")
def redis(settings, here):
    pass
