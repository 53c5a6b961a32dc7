// Has mongod take the certificate that is on disk, without a restart. `wanted`, connect.js and kept.js
// stand before this on standard input. Prints {rotated: true} or {problem}.
//
// The administrator may make roles, and has none that lets it do this: it has one for as long as it takes. Where this is
// cut off, content.js takes it away.

function administrator() {
  const passwords = [wanted.password, ...kept().map(right => right.password)];
  for (const password of passwords) {
    try {
      return new Mongo(mongodb_uri('admin', password, 'admin')).getDB('admin');
    } catch (error) {
      if (error.code !== 18) throw error;  // AuthenticationFailed
    }
  }
  throw new Error('the administrator is refused');
}

function run() {
  try {
    const admin = administrator();
    if (!admin.getRole(CERTIFICATES_ROLE)) {
      const privileges = [{resource: {cluster: true}, actions: ['rotateCertificates']}];
      admin.createRole({role: CERTIFICATES_ROLE, privileges, roles: []});
    }
    try {
      admin.grantRolesToUser('admin', [CERTIFICATES_ROLE]);
      const done = administrator().runCommand({rotateCertificates: 1});
      if (!done.ok) throw new Error(done.errmsg);
    } finally {
      admin.dropRole(CERTIFICATES_ROLE);
    }
  } catch (error) {
    return {problem: error.message};
  }
  return {rotated: true};
}

print(JSON.stringify(run()));
