package qemu_test
import ("testing";"context";"time";"skerry.internal/skerry/qemu";"fmt";"os")
func TestZZ(t *testing.T){
 b:=board(t,os.Getenv("B")); m:=machine(t,b,os.Getenv("M"))
 ctx,c:=context.WithTimeout(t.Context(),150*time.Second); defer c()
 vm,err:=qemu.New(ctx,qemu.Config{Dir:t.TempDir(),Machine:m,Image:os.Getenv("I"),Forwards:map[int]int{6443:0}}); if err!=nil{t.Fatal(err)}
 t.Cleanup(vm.Cut)
 b0:=time.Now()
 if err:=vm.Start(ctx);err!=nil{t.Fatal(err)}
 _,err=vm.Expect(ctx,"skerry: boot complete|end Kernel panic|unit skerryd")
 fmt.Println(time.Since(b0),err)
 cc,c2:=context.WithTimeout(ctx,10*time.Second); defer c2()
 vm.Expect(cc,"NEVER")
 os.WriteFile("/tmp/wq/console.txt",[]byte(vm.Console()),0644)
}
