/etc/edgeagent.conf
/etc/edgeagent/
