# Makes the administrator, or finds that a run that was cut off has made it already.
# `wanted` and login.py stand before this on standard input.

try:
    log_in_with_one_of([wanted["password"], *(password for _, password in kept())])
except Refused:
    announce()
    alone = MongoClient(private(), directConnection=True, serverSelectionTimeoutMS=10000)
    alone["admin"].command("createUser", "admin", pwd=wanted["password"], roles=["userAdminAnyDatabase"])
