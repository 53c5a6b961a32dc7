# Has mongod take the certificate that is on disk, without a restart. `wanted` and login.py stand before this on
# standard input. Prints {rotated: true} or {problem}.
#
# The administrator may make roles, and has none that lets it do this: it has one for as long as it takes. Where this is
# cut off, content.py takes it away.


def administrator():
    return log_in_with_one_of([wanted["password"], *(password for _, password in kept())])["admin"]


def run():
    role = wanted["role"]
    try:
        admin = administrator()
        if not admin.command("rolesInfo", role)["roles"]:
            privileges = [{"resource": {"cluster": True}, "actions": ["rotateCertificates"]}]
            admin.command("createRole", role, privileges=privileges, roles=[])
        try:
            admin.command("grantRolesToUser", "admin", roles=[role])
            administrator().command("rotateCertificates")
        finally:
            admin.command("dropRole", role)
    except Refused:
        return {"problem": "the administrator is refused"}
    except (PyMongoError, OSError, ValueError) as error:
        return {"problem": words(error)}
    return {"rotated": True}


print(json.dumps(run()))
