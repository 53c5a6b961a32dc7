from groundwork.roles import role
from groundwork.settings import RoleSettings


class Settings(RoleSettings):
    role = "docker"


@role(Settings, "docker")
def docker(settings, here):
    pass
