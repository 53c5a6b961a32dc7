// Makes the administrator, or finds that a run that was cut off has made it already.
// `wanted` and kept.js stand before this on standard input.

const socket = encodeURIComponent('/run/groundwork-mongodb-administrator/mongod.sock');

function has_administrator(password) {
  const login = `admin:${encodeURIComponent(password)}@`;
  try {
    new Mongo(`mongodb://${login}${socket}/?authSource=admin&serverSelectionTimeoutMS=10000`);
    return true;
  } catch (error) {
    if (error.code === 18) return false;  // AuthenticationFailed
    throw error;
  }
}

if (!has_administrator(wanted.password) && !kept().some(right => has_administrator(right.password))) {
  announce();
  const admin = new Mongo(`mongodb://${socket}/?serverSelectionTimeoutMS=10000`).getDB('admin');
  admin.createUser({user: 'admin', pwd: wanted.password, roles: ['userAdminAnyDatabase']});
}
