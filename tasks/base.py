from groundwork.roles import role
from groundwork.settings import RoleSettings


class Settings(RoleSettings):
    role = "base"


@role(Settings, "base")
def base(settings, here):
    pass
