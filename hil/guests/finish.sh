# Behind the packages' own scripts: what makes a small server of Debian that is quick to boot where each process costs
# a second: no consoles but the serial one, nothing for disks, desktops and logins that a guest has not.
systemctl enable systemd-networkd.service console-getty.service
systemctl set-default multi-user.target
systemctl disable getty@tty1.service
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer \
    e2scrub_reap.service motd-news.timer systemd-networkd-wait-online.service getty-static.service \
    systemd-logind.service systemd-pstore.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
    systemd-journal-flush.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-sysusers.service systemd-repart.service systemd-firstboot.service systemd-network-generator.service \
    systemd-ask-password-console.path systemd-ask-password-wall.path systemd-user-sessions.service \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service \
    modprobe@fuse.service modprobe@loop.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-random-seed.service
mkdir -p /etc/systemd/system-generators
for generator in /usr/lib/systemd/system-generators/*; do
    case ${generator##*/} in
        systemd-fstab-generator) ;;
        *) ln -sf /dev/null "/etc/systemd/system-generators/${generator##*/}" ;;
    esac
done
passwd -d root
