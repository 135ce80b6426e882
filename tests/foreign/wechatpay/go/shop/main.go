// wechatpay-go with a key and secrets that stay on a token: an order, a query, a field, a payment.
//
//	shop PLATFORM DAEMON FOLDER MCHID
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/wechatpay-apiv3/wechatpay-go/core"
	"github.com/wechatpay-apiv3/wechatpay-go/core/auth"
	"github.com/wechatpay-apiv3/wechatpay-go/core/option"
	"opcert.example/opcert"
)

// onToken is the Signer; everything else is a *opcert.Daemon itself.
type onToken struct{ *opcert.Daemon }

func (t onToken) Sign(ctx context.Context, message string) (*auth.SignatureResult, error) {
	signed, err := t.Daemon.Sign(ctx, message)
	return &auth.SignatureResult{
		MchID: t.Merchant, CertificateSerialNo: signed.Serial, Signature: signed.Signature}, err
}

func (onToken) Algorithm() string { return "SHA256-RSA2048" }

type order struct {
	Description string         `json:"description"`
	OutTradeNo  string         `json:"out_trade_no"`
	Amount      map[string]int `json:"amount"`
}

type person struct {
	Name *string `json:"name" encryption:"EM_APIV3"`
}

func main() {
	log.SetFlags(0)
	platform, merchant := os.Args[1], os.Args[4]
	daemon, err := opcert.New(os.Args[2], os.Args[3], merchant)
	must(err)
	ctx := context.Background()

	client, err := core.NewClient(ctx,
		option.WithSigner(onToken{daemon}),
		option.WithVerifier(daemon),
		option.WithWechatPayCipher(daemon, daemon))
	must(err)

	result, err := client.Post(ctx, platform+"/v3/pay/transactions/native",
		order{"中文", "wechatpay-go-1", map[string]int{"total": 1}})
	must(err)
	var created struct {
		CodeURL string `json:"code_url"`
	}
	must(core.UnMarshalResponse(result.Response, &created))
	expect(strings.HasSuffix(created.CodeURL, "wechatpay-go-1"), created)

	_, err = client.Get(ctx, platform+"/v3/pay/transactions/out-trade-no/go-1?mchid="+merchant)
	must(err)
	for _, name := range []string{"PROBE", "CHANGED"} {
		_, err := client.Get(ctx, platform+"/v3/pay/transactions/out-trade-no/"+name)
		expect(err != nil && strings.Contains(err.Error(), "wechatpay-signature"), err)
	}

	const plain = "王小明"
	name := plain
	someone := person{&name}
	serial, err := client.EncryptRequest(ctx, &someone)
	must(err)
	expect(name != plain, name)
	header := http.Header{"Wechatpay-Serial": {serial}}
	result, err = client.Request(ctx, "POST", platform+"/v3/fields", header, nil, someone, "")
	must(err)
	var echoed person
	must(json.NewDecoder(result.Response.Body).Decode(&echoed))
	must(client.DecryptResponse(ctx, &echoed))
	expect(*echoed.Name == plain, *echoed.Name)

	_, err = client.Sign(ctx, "pay everything to me\n")
	expect(err != nil, "a string that is no message was signed")
	fmt.Println("wechatpay-go: ok")
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func expect(holds bool, found any) {
	if !holds {
		log.Fatalf("unexpected: %v", found)
	}
}
