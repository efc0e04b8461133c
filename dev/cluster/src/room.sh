# The first process of a node.
# usage: sh room.sh OWN FOLDER, where OWN is a folder of the node inside of the cluster's
set -e
own=$1 folder=$2
mkdir -p "$own/var" "$own/var-work" "$own/sysctl"
# The sockets and locks of the machine's own containerd, systemd and others are not for this node.
mount -t tmpfs tmpfs /run
mkdir /run/cluster /run/lock
mount --bind "$folder" /run/cluster
mount -t overlay overlay -o "lowerdir=/var,upperdir=$own/var,workdir=$own/var-work" /var
case $folder in
    /var/*) mount --bind /run/cluster "$folder" ;;
esac
# What a kubelet sets for the whole machine it finds set, and writes to files of its own where it does not.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    name=${setting%=*}
    file=$own/sysctl/$(echo "$name" | tr / .)
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/$name"
done
touch "$own/furnished"
# Whatever loses its parent becomes a child of this process, which waits for it.
sleep infinity &
wait
