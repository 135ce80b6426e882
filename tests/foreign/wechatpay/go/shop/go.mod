module opcert.example/shop

go 1.19

require (
	github.com/wechatpay-apiv3/wechatpay-go v0.2.21
	opcert.example/opcert v0.0.0
)

replace opcert.example/opcert => ../
