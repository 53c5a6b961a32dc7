from groundwork.roles import role
from groundwork.settings import RoleSettings


class Settings(RoleSettings):
    role = "chromadb"


@role(Settings, "chromadb")
def chromadb(settings, here):
    pass
