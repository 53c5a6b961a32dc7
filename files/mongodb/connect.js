// How this host's scripts reach mongod: by loopback, as `wanted` says, which stands before this on standard input.

function mongodb_uri(user, password, source) {
  const part = encodeURIComponent;
  // By loopback it is this host's own: its certificate has other names, and one that has ended must not keep
  // out who brings the next.
  const tls = wanted.tls ? '&tls=true&tlsAllowInvalidCertificates=true' : '';
  return `mongodb://${part(user)}:${part(password)}@127.0.0.1:${wanted.port}/?authSource=${part(source)}` +
    `&serverSelectionTimeoutMS=5000&directConnection=true${tls}`;
}

// certificate.js gives it to the administrator for a moment.
const CERTIFICATES_ROLE = 'groundworkCertificates';
