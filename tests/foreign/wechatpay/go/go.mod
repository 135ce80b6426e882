module opcert.example/opcert

go 1.19
