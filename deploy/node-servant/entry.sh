#!/bin/sh
# What Jobs of the node conversion call in the image of --node-servant-image: `entry.sh convert ...` or `entry.sh revert ...`. The host's
# root is mounted at /openyurt; the program enters it by itself.
set -eu
command=$1
shift
exec /usr/local/bin/node-servant "$command" --root=/openyurt "$@"
