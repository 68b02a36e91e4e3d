# Behind the packages' own scripts: what makes a small server of Debian that is quick to boot.
systemctl enable systemd-networkd.service
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer \
    e2scrub_reap.service motd-news.timer systemd-networkd-wait-online.service
passwd -d root
