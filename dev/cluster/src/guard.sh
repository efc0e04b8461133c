# Ends every process that was started for a folder and removes the folder, once standard input ends. That is held open by
# the folder's owner, so it ends with the owner, however that came about. Told to leave, it leaves all as it is.
# usage: sh guard.sh FOLDER MARK, where MARK stands in the environment of each process of the folder
folder=$1 mark=$2
# A terminal's Ctrl-C is for the owner.
trap '' HUP INT TERM
if read -r word && [ "$word" = leave ]; then
    exit 0
fi

# The cable to a cluster's network: without this it would stay for as long as the kernel waits for answers to the last
# packets of those who are about to be killed. First of all, while no other cluster can have taken its name.
if { read -r ip && read -r name && read -r index; } 2>/dev/null <"$folder/cable" &&
    [ "$(cat "/sys/class/net/$name/ifindex" 2>/dev/null)" = "$index" ]; then
    "$ip" link delete "$name"
fi

marked() {
    grep --null-data --line-regexp --fixed-strings --files-with-matches --no-messages \
        --regexp="$mark" /proc/[0-9]*/environ | cut -d / -f 3
}

# Ended processes have no environment, even while nobody has waited for them.
tries=200
while pids=$(marked) && [ -n "$pids" ] && [ "$tries" -gt 0 ]; do
    kill -KILL $pids 2>/dev/null
    tries=$((tries - 1))
    sleep 0.02
done

# A node's processes are gone with its first one; what is left of it are control groups, which have to be empty.
groups() {
    for name in $(cat "$folder"/*/cgroup 2>/dev/null); do
        for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
            if [ -d "$hierarchy/$name" ]; then
                find "$hierarchy/$name" -depth -type d
            fi
        done
    done
}
tries=200
while found=$(groups) && [ -n "$found" ] && [ "$tries" -gt 0 ]; do
    rmdir $found 2>/dev/null
    tries=$((tries - 1))
    sleep 0.02
done
rm -rf --one-file-system -- "$folder"
