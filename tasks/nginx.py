from groundwork.roles import role
from groundwork.settings import RoleSettings


class Settings(RoleSettings):
    role = "nginx"


@role(Settings, "nginx")
def nginx(settings, here):
    pass
