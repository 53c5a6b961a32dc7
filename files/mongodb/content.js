// Compares users, collections and indexes with what is wanted, and in apply mode makes them agree.
// `wanted`, connect.js and kept.js stand before this on standard input. Prints one JSON document: {problem} or {changes, notes}.

const AUTHENTICATION_FAILED = 18;

function connect_as(user, password, source) {
  try {
    return {connection: new Mongo(mongodb_uri(user, password, source))};
  } catch (error) {
    return {error, refused: error.code === AUTHENTICATION_FAILED};
  }
}

function same(a, b) {
  return JSON.stringify(a) === JSON.stringify(b);
}

// Logs in as the administrator: with the password as it shall be, or as this host kept it when it was last set.
function administrator(changes) {
  const login = connect_as('admin', wanted.password, 'admin');
  if (!login.refused) return login;
  for (const right of kept()) {
    const old = connect_as('admin', right.password, 'admin');
    if (old.refused) continue;
    if (old.error) return old;
    changes.push('administrator admin: password');
    if (wanted.apply) {
      announce(right);
      old.connection.getDB('admin').updateUser('admin', {pwd: wanted.password});
    }
    return old;
  }
  return login;
}

// What a run that was cut off while it brought a certificate has left. What a role is granted to loses it with the role.
function remove_certificates_role(admin, changes) {
  if (!admin.getRole(CERTIFICATES_ROLE)) return;
  changes.push(`administrator admin: role ${CERTIFICATES_ROLE} taken away, which a run that was cut off had left`);
  if (wanted.apply) admin.dropRole(CERTIFICATES_ROLE);
}

function compare_user(admin, all, user, changes, notes) {
  const database = admin.getDB(user.database);
  const roles = user.roles.map(role => ({role, db: user.database}));
  const found = all.find(other => other.user === user.name && other.db === user.database);
  if (user.state === 'absent') {
    if (!found) return;
    changes.push(`user ${user.name} of ${user.database}: removed`);
    if (wanted.apply) database.dropUser(user.name);
    return;
  }
  all.filter(other => other.user === user.name && !declared(other)).forEach(other => notes.push(
    `there is a user ${user.name} of ${other.db} too, with a password and roles of its own. If it has moved from there, add ` +
    `{"name": "${user.name}", "database": "${other.db}", "state": "absent"} to mongodb_users`));
  const sorted = list => list.map(item => `${item.db}.${item.role}`).sort();
  if (!found) {
    changes.push(`user ${user.name} of ${user.database}: new, ${user.roles.join(', ')}`);
    if (wanted.apply) database.createUser({user: user.name, pwd: user.password, roles});
    return;
  }
  if (!same(sorted(found.roles), sorted(roles))) {
    changes.push(`user ${user.name} of ${user.database}: roles ${user.roles.join(', ')}`);
    if (wanted.apply) database.updateUser(user.name, {roles});
  }
  const login = connect_as(user.name, user.password, user.database);
  if (login.error && !login.refused) throw login.error;
  if (login.refused) {
    changes.push(`user ${user.name} of ${user.database}: password`);
    if (wanted.apply) database.updateUser(user.name, {pwd: user.password});
  }
}

function declared(found) {
  return wanted.users.some(user => user.name === found.user && user.database === found.db);
}

function compare_collection(database, item, changes) {
  const found = database.getCollectionInfos({name: item.name})[0];
  const name = `${item.database}.${item.name}`;
  const series = item.timeseries &&
    Object.fromEntries(Object.entries(item.timeseries).filter(([, value]) => value !== null));
  if (!found) {
    changes.push(`collection ${name}: new${series ? ', a time series' : ''}`);
    if (wanted.apply) database.createCollection(item.name, series ? {timeseries: series} : {});
  } else if ((found.type === 'timeseries') !== Boolean(series) ||
             (series && Object.keys(series).some(key => found.options.timeseries[key] !== series[key]))) {
    throw new Error(`collection ${name} exists with other options: ${JSON.stringify(found.options)}. ` +
      'It is not changed, because that would mean copying its data: see mongodb_collections');
  }
  const indexes = found ? database.getCollection(item.name).getIndexes() : [];
  item.indexes.forEach(index => compare_index(database, item, indexes, index, changes));
}

function compare_index(database, item, indexes, index, changes) {
  const options = {};
  if (index.unique) options.unique = true;
  if (index.expire_after !== null) options.expireAfterSeconds = index.expire_after;
  // By the name that the server gives: a text index does not keep its keys as they were given.
  const name = Object.entries(index.keys).flat().join('_');
  const there = indexes.find(found => found.name === name);
  if (there && Boolean(there.unique) === index.unique &&
      (there.expireAfterSeconds ?? null) === index.expire_after) return;
  changes.push(`index ${JSON.stringify(index.keys)} of ${item.database}.${item.name}`);
  if (wanted.apply) database.getCollection(item.name).createIndex(index.keys, options);
}

function run() {
  const changes = [];
  const notes = [];
  try {
    const admin = administrator(changes);
    if (admin.refused) return {problem: 'refused'};
    if (admin.error) return {problem: admin.error.message};
    remove_certificates_role(admin.connection.getDB('admin'), changes);
    const all = admin.connection.getDB('admin').runCommand({usersInfo: {forAllDBs: true}}).users;
    wanted.users.forEach(user => compare_user(admin.connection, all, user, changes, notes));
    for (const item of wanted.collections) {
      const owner = wanted.users.find(user => user.state === 'present' && user.database === item.database &&
        user.roles.some(role => ['readWrite', 'dbOwner'].includes(role)));
      const login = connect_as(owner.name, owner.password, owner.database);
      if (login.connection) compare_collection(login.connection.getDB(item.database), item, changes);
      else changes.push(`collection ${item.database}.${item.name}: with its user`);
    }
  } catch (error) {
    return {problem: error.message};
  }
  return {changes, notes};
}

print(JSON.stringify(run()));
