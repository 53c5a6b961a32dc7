// The administrator's password as this host last saw it work: the way in when the secret has changed.
// It lies in the file `wanted.kept`; beside it, with .new, one that is about to be set.

const fs = require('fs');

// {path, password} of what is kept, for those that may be right when `wanted.password` is not.
function kept() {
  return [wanted.kept, `${wanted.kept}.new`]
    .filter(path => fs.existsSync(path))
    .map(path => ({path, password: fs.readFileSync(path, 'utf8')}));
}

// Before `wanted.password` is set: from here on, the right one is among the two, wherever the run ends.
function announce(right) {
  if (right && right.path !== wanted.kept) fs.renameSync(right.path, wanted.kept);
  const file = fs.openSync(`${wanted.kept}.new`, 'w', 0o600);
  fs.writeSync(file, wanted.password);
  fs.fsyncSync(file);
  fs.closeSync(file);
}
