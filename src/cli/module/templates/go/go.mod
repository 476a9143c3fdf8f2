module provisioner

go 1.25
