# Compares users, collections and indexes with what is wanted, and in apply mode makes them agree.
# `wanted` and login.py stand before this on standard input. Prints one JSON document: {problem} or {changes, notes}.

import socket

logins = {}


class Unfit(Exception):
    """What is there can't be made what is wanted."""


def connect_as(user):
    """A user's connection, made once. Raises Refused, or another error."""
    key = (user["name"], user["database"])
    if key not in logins:
        logins[key] = log_in(user["name"], user["password"], user["database"])
    return logins[key]


def administrator(changes):
    """Logs in as the administrator: with the password as it shall be, or as this host kept it when it was last set."""
    try:
        return log_in("admin", wanted["password"], "admin")
    except Refused:
        pass
    for path, password in kept():
        try:
            client = log_in("admin", password, "admin")
        except Refused:
            continue
        changes.append("administrator admin: password")
        if wanted["apply"]:
            announce(path)
            client["admin"].command("updateUser", "admin", pwd=wanted["password"])
        return client
    raise Refused


def remove_certificates_role(admin, changes):
    """What a run that was cut off while it brought a certificate has left. What a role is granted to loses it with the role."""
    role = wanted["role"]
    if not admin.command("rolesInfo", role)["roles"]:
        return
    changes.append(f"administrator admin: role {role} taken away, which a run that was cut off had left")
    if wanted["apply"]:
        admin.command("dropRole", role)


def compare_user(client, there, user, changes, notes):
    name, place, database = user["name"], f"user {user['name']} of {user['database']}", client[user["database"]]
    found = next((other for other in there if (other["user"], other["db"]) == (name, user["database"])), None)
    if user["state"] == "absent":
        if found:
            changes.append(f"{place}: removed")
            if wanted["apply"]:
                database.command("dropUser", name)
        return
    for other in there:
        if other["user"] == name and not declared(other):
            notes.append(
                f"there is a user {name} of {other['db']} too, with a password and roles of its own. If it has moved from there, "
                f'add {{"name": "{name}", "database": "{other["db"]}", "state": "absent"}} to mongodb_users'
            )
    roles = [{"role": role, "db": user["database"]} for role in user["roles"]]
    if not found:
        changes.append(f"{place}: new, {', '.join(user['roles'])}")
        if wanted["apply"]:
            database.command("createUser", name, pwd=user["password"], roles=roles)
        return
    if in_order(found["roles"]) != in_order(roles):
        changes.append(f"{place}: roles {', '.join(user['roles'])}")
        if wanted["apply"]:
            database.command("updateUser", name, roles=roles)
    try:
        connect_as(user)
    except Refused:
        changes.append(f"{place}: password")
        if wanted["apply"]:
            database.command("updateUser", name, pwd=user["password"])


def declared(found):
    return any((user["name"], user["database"]) == (found["user"], found["db"]) for user in wanted["users"])


def in_order(roles):
    return sorted((role["db"], role["role"]) for role in roles)


def compare_collection(database, item, changes):
    name = f"{item['database']}.{item['name']}"
    there = database.command("listCollections", filter={"name": item["name"]})["cursor"]["firstBatch"]
    found = there[0] if there else None
    series = item["timeseries"] and {key: value for key, value in item["timeseries"].items() if value is not None}
    if not found:
        changes.append(f"collection {name}: new{', a time series' if series else ''}")
        if wanted["apply"]:
            database.command("create", item["name"], **({"timeseries": series} if series else {}))
    elif (found["type"] == "timeseries") != bool(series) or any(
        found["options"]["timeseries"].get(key) != value for key, value in (series or {}).items()
    ):
        raise Unfit(
            f"collection {name} exists with other options: {json.dumps(found['options'], default=str)}. "
            "It is not changed, because that would mean copying its data: see mongodb_collections"
        )
    indexes = database.command("listIndexes", item["name"])["cursor"]["firstBatch"] if found else []
    for index in item["indexes"]:
        compare_index(database, item, indexes, index, changes)


def compare_index(database, item, indexes, index, changes):
    # By the name that a shell gives: a text index does not keep its keys as they were given.
    name = "_".join(f"{field}_{kind}" for field, kind in index["keys"].items())
    there = next((found for found in indexes if found["name"] == name), None)
    expires = None if there is None else there.get("expireAfterSeconds")
    if there and bool(there.get("unique")) == index["unique"] and expires == index["expire_after"]:
        return
    changes.append(f"index {json.dumps(index['keys'], separators=(',', ':'))} of {item['database']}.{item['name']}")
    if wanted["apply"]:
        options = {"unique": True} if index["unique"] else {}
        if index["expire_after"] is not None:
            options["expireAfterSeconds"] = index["expire_after"]
        database.command("createIndexes", item["name"], indexes=[{"key": index["keys"], "name": name, **options}])


def owner(item):
    """The user who makes a collection."""
    for user in wanted["users"]:
        if user["state"] == "present" and user["database"] == item["database"] and {"readWrite", "dbOwner"} & set(user["roles"]):
            return user
    raise Unfit(f"collection {item['database']}.{item['name']}: no user has readWrite there")


def run():
    changes, notes = [], []
    try:
        # Where nobody listens, pymongo would try again for seconds.
        socket.create_connection(("127.0.0.1", wanted["port"]), 2).close()
        client = administrator(changes)
        remove_certificates_role(client["admin"], changes)
        there = client["admin"].command("usersInfo", {"forAllDBs": True})["users"]
        for user in wanted["users"]:
            compare_user(client, there, user, changes, notes)
        for item in wanted["collections"]:
            try:
                login = connect_as(owner(item))
            except (Refused, PyMongoError):
                changes.append(f"collection {item['database']}.{item['name']}: with its user")
            else:
                compare_collection(login[item["database"]], item, changes)
    except Refused:
        return {"problem": "refused"}
    except (PyMongoError, OSError, ValueError, Unfit) as error:
        return {"problem": words(error)}
    return {"changes": changes, "notes": notes}


print(json.dumps(run()), flush=True)
os._exit(0)  # what watches the server in the background need not be waited for
