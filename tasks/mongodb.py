from groundwork.roles import role
from groundwork.settings import RoleSettings


class Settings(RoleSettings):
    role = "mongodb"


@role(Settings, "mongodb")
def mongodb(settings, here):
    pass
