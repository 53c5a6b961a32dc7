# What the scripts of the sites share.
sites() { for directory in /srv/*/; do basename "$directory"; done; }
log() { echo "$(date +%FT%T) $*" >>/var/log/sites/jobs.log; }
