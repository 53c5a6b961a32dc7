from groundwork.roles import role
from groundwork.settings import RoleSettings


class Settings(RoleSettings):
    role = "app"


@role(Settings, "app")
def app(settings, here):
    pass
