// Requests to the platform of check.py, put together as wechatpay-go does, without it.
//
//	check PLATFORM DAEMON FOLDER MCHID
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"opcert.example/opcert"
)

type shop struct {
	platform string
	daemon   *opcert.Daemon
}

// call sends one signed request and answers what came back once it is known to be the platform's.
func (s shop) call(ctx context.Context, method, target, body string) (map[string]any, error) {
	nonce, second := fmt.Sprintf("%d", time.Now().UnixNano()), time.Now().Unix()
	message := fmt.Sprintf("%s\n%s\n%d\n%s\n%s\n", method, target, second, nonce, body)
	signed, err := s.daemon.Sign(ctx, message)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, s.platform+target, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	serial, err := s.daemon.GetSerial(ctx)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Wechatpay-Serial", serial)
	request.Header.Set("Authorization", fmt.Sprintf(
		`WECHATPAY2-SHA256-RSA2048 mchid="%s",nonce_str="%s",timestamp="%d",serial_no="%s",signature="%s"`,
		s.daemon.Merchant, nonce, second, signed.Serial, signed.Signature))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", response.Status, content)
	}
	header := response.Header.Get
	err = s.daemon.Verify(ctx, header("Wechatpay-Serial"), fmt.Sprintf("%s\n%s\n%s\n",
		header("Wechatpay-Timestamp"), header("Wechatpay-Nonce"), content), header("Wechatpay-Signature"))
	if err != nil {
		return nil, err
	}
	answer := map[string]any{}
	return answer, json.NewDecoder(bytes.NewReader(content)).Decode(&answer)
}

func main() {
	log.SetFlags(0)
	daemon, err := opcert.New(os.Args[2], os.Args[3], os.Args[4])
	must(err)
	ctx, s := context.Background(), shop{os.Args[1], daemon}

	order := `{"description":"中文 \"quoted\"","out_trade_no":"go-1","amount":{"total":1}}`
	created, err := s.call(ctx, "POST", "/v3/pay/transactions/native", order)
	must(err)
	expect(created["code_url"] == "weixin://wxpay/bizpayurl?pr=go-1", created)
	found, err := s.call(ctx, "GET", "/v3/pay/transactions/out-trade-no/go-1?mchid="+daemon.Merchant, "")
	must(err)
	expect(found["trade_state"] == "SUCCESS", found)
	// Answers with a probe's signature, or with a body that was changed, are refused.
	for _, name := range []string{"PROBE", "CHANGED"} {
		_, err := s.call(ctx, "GET", "/v3/pay/transactions/out-trade-no/"+name, "")
		refused(err, "wechatpay-signature")
	}
	for _, text := range []string{"", "pay everything to me\n", "a\nb\nc\nd\n", "wx1\n1\nn\np\nmore"} {
		_, err := daemon.Sign(ctx, text)
		expect(err != nil, text)
	}

	// A field goes to the platform, which sends it back encrypted for the merchant.
	serial, err := daemon.SelectCertificate(ctx)
	must(err)
	field, err := daemon.Encrypt(ctx, serial, "王小明")
	must(err)
	echoed, err := s.call(ctx, "POST", "/v3/fields", fmt.Sprintf(`{"name":"%s"}`, field))
	must(err)
	name, err := daemon.Decrypt(ctx, echoed["name"].(string))
	must(err)
	expect(name == "王小明", name)

	// A callback opens once; delivered anew, it is told to be the same event.
	for delivery := 1; delivery <= 2; delivery++ {
		sent, err := s.call(ctx, "GET", "/v3/callback/EV-go", "")
		must(err)
		header := http.Header{}
		for name, value := range sent["headers"].(map[string]any) {
			header.Set(name, value.(string))
		}
		body := []byte(sent["body"].(string))
		opened, err := daemon.Open(ctx, header, body)
		must(err)
		expect(opened.Resource == `{"amount": 1}`, opened)
		expect((opened.FirstDeliveredAt != "") == (delivery == 2), opened)
		_, err = daemon.Open(ctx, header, body)
		refused(err, "wechatpay-replayed")
	}
	fmt.Println("go: ok")
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

func refused(err error, code string) {
	var refused *opcert.Refused
	expect(errors.As(err, &refused) && refused.Code == code, err)
}
