# enter.sh MOUNTS PYTHON: run in fresh namespaces, in the folder that becomes the root of /kaggle/src/script.py.
# MOUNTS is a file of the lines that fill that folder.
set -e
show() { mount --rbind "$1" "$2" && mount -o remount,bind,ro "$2"; }
. "$1"
# A container that covers parts of its own /proc cannot mount another.
mount -t proc none proc 2>/dev/null || mount --rbind /proc proc
[ ! -d dev/shm ] || mount -t tmpfs none dev/shm
# Bring the loopback up, which a kernel without internet has, too.
"$2" -ISc 'import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 1))'
# Of the environment, only what the shell added is removed.
env -u PWD -u OLDPWD -u SHLVL -u _ \
    unshare --root=. --wd=/kaggle/working /image/bin/python -u /kaggle/src/script.py || exit
