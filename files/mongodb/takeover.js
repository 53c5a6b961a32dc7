// Whether the administrator of a MongoDB that was there before can be ours; in apply mode, where nobody
// is asked for a password yet, makes them. `wanted` stands before this on standard input.
// Prints {login: good | poor | refused | open | made}.

const AUTHENTICATION_FAILED = 18;
const UNAUTHORIZED = 13;
const ENOUGH = ['root', 'userAdminAnyDatabase'];

function admin_as(login) {
  const options = 'authSource=admin&directConnection=true&serverSelectionTimeoutMS=5000';
  return new Mongo(`mongodb://${login}127.0.0.1:${wanted.port}/?${options}`).getDB('admin');
}

function login() {
  try {
    const admin = admin_as(`admin:${encodeURIComponent(wanted.password)}@`);
    const roles = admin.runCommand({connectionStatus: 1}).authInfo.authenticatedUserRoles;
    return roles.some(role => role.db === 'admin' && ENOUGH.includes(role.role)) ? 'good' : 'poor';
  } catch (error) {
    if (error.code !== AUTHENTICATION_FAILED) throw error;
  }
  const admin = admin_as('');
  try {
    if (admin.getUser('admin')) return 'refused';
  } catch (error) {
    if (error.code === UNAUTHORIZED) return 'refused';
    throw error;
  }
  if (!wanted.apply) return 'open';
  admin.createUser({user: 'admin', pwd: wanted.password, roles: ['userAdminAnyDatabase']});
  return 'made';
}

print(JSON.stringify({login: login()}));
