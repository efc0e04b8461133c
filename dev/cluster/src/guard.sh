# Ends every process that was started for a folder and removes the folder, once standard input ends. That is held open by
# the folder's owner, so it ends with the owner, however that came about. Told to leave, it leaves all as it is.
# usage: sh guard.sh FOLDER MARK, where MARK stands in the environment of each process of the folder
folder=$1 mark=$2
# A terminal's Ctrl-C is for the owner.
trap '' HUP INT TERM
if read -r word && [ "$word" = leave ]; then
    exit 0
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
rm -rf -- "$folder"
